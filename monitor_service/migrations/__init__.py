"""Alembic migrations of the monitor's database; ``migrate.py`` runs them."""
