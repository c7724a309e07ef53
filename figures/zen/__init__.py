"""The evaluation of Zen: a module for each part, with the pictures that it draws beside it."""
