"""Watches any PyTorch training loop: refuses a bad step on the device, and tells what went wrong."""
