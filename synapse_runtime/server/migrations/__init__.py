"""Migrations of the store's database, run by alembic."""
