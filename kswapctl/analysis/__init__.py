"""What changed where, in numbers and figures."""
