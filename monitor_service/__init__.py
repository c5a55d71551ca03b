"""The monitor: stores what trainers report, judges their health, shows it, and can send them back."""
