"""How actors of one machine and of several reach each other, and where entries lie meanwhile."""
