"""What a person at the terminal meets: commands, tables, names."""
