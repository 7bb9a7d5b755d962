"""How do many runs come out of one YAML: a grid of settings, run by run, several at once, as often as it takes."""
