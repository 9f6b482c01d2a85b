"""kswapctl changes what a pretrained vision model knows: learn, forget, measure, roll back, ship."""
