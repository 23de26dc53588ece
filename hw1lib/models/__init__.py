"""The networks, as plain modules; nothing here trains or draws."""
