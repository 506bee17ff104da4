-- The role that runs the app. It can add to the log and cannot change or remove what is there.
DO $$
BEGIN
    CREATE ROLE hydracore_app NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL; -- roles belong to the cluster: another database of it has made this one
END
$$;

DO $$
BEGIN
    EXECUTE format('GRANT hydracore_app TO %I', current_user);
END
$$;

GRANT USAGE ON SCHEMA public TO hydracore_app;
GRANT SELECT, INSERT ON event, command TO hydracore_app;
GRANT SELECT, UPDATE ON lane_head TO hydracore_app;
GRANT SELECT, INSERT, UPDATE ON stream, checkpoint TO hydracore_app;
GRANT SELECT, INSERT, UPDATE ON customer_key TO hydracore_app;
GRANT SELECT, INSERT, UPDATE ON instance, provision_log, reservation TO hydracore_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON heartbeat, attention, duty, orphan TO hydracore_app;
GRANT SELECT, INSERT, UPDATE ON api_key TO hydracore_app;
