"""A map of a large scene: its tiles are asked about, and what is answered becomes polygons."""
