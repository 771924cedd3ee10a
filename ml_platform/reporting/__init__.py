"""HTML pages and SVG charts, drawn from Jinja2 templates; no model, no database."""
