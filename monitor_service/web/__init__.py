"""The monitor's pages for people."""
