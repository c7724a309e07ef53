"""The experiments of Lazarus's evaluation: parameters in, a tidy table out. Seeded, without files or plots."""
