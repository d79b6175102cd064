"""The conventional recipe: every block of the transformer learned by flow matching, in several looks."""
