"""tensorflow-datasets builders of the project's own."""
