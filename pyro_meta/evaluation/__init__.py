"""What a router does on validation text, and what it costs."""
