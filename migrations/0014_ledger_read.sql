-- Every part looks at its start whether the database has all of these.
GRANT SELECT ON migration TO hydracore_app;
