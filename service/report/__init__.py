"""One study as one page for people: verdict, charts, tables, self-contained HTML. Pure: documents in, text out."""
