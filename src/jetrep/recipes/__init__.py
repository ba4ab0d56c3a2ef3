"""Recipes: YAML files for ``jetrep VERB --config NAME``, one for each published method and size."""
