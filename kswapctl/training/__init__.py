"""The one loop, and what it runs on. Training returns values; operations commit them."""
