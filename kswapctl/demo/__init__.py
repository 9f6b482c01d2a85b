"""The demo: the whole story in a minute, on handwritten digits and a small network that come along."""
