"""The demo's page: charts, pictures, template, and the summary beside it."""
