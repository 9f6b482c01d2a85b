"""Model and sets in, scores out."""
