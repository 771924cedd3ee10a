"""The public HTTP surface: routes, formats, limits, OpenAPI."""
