"""Small real things to test with: what they make is made by the same code as in production, from arithmetic."""
