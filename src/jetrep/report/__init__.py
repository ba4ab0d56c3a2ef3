"""Pictures and tables: arrays in, figures and text out. Knows no other room, so that every room may use it."""
