"""How work is started, and the worker that does it. Workers read and write folders; they never open the database."""
