"""Radio maps for training: read, checked, reduced, and handed out in an order that can be saved."""
