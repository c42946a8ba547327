"""The roof: commands, loaded lazily, and the local engines."""
