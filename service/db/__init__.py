"""The database: tables, sessions, the database clock, migrations."""
