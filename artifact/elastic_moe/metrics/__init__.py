"""One number each, from a table: what the claims of Lazarus are checked by."""
