"""Views of a jet: `JetBatch` in, `JetBatch` out."""
