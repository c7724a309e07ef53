"""The evaluation of Marconi: a module for each part, with the pictures that it draws beside it."""
