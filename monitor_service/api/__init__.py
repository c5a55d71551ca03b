"""The HTTP side: parse, call, answer."""
