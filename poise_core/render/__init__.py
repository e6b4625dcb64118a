"""Views as text for a terminal, as Markdown, as pages and as drawings."""
