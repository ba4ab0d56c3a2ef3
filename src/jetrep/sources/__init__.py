"""Where jets come from: one module per origin. The only room that knows file formats and the event generator."""
