"""Pretrained networks: loading them, finding where they can be cut and adapted, composing their stacks."""
