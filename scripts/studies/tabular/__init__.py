"""What is claimed of networks generated for tables: real tables, and their rivals."""
