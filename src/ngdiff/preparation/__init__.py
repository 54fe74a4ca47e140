"""examples and the starting model -> the examples with everything that losses compare with."""
