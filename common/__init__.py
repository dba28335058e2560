"""The helper package that every unit of the course shares."""
