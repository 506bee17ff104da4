-- The role that runs the app. It can add to the log and cannot change or remove what is there.
-- Roles belong to the cluster: another database of it, or whoever runs it, may have made this one. An owner who may not
-- create roles needs no more than to be a member of it.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'hydracore_app') THEN
        CREATE ROLE hydracore_app NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL; -- another database made it in this moment
END
$$;

DO $$
BEGIN
    IF NOT pg_has_role(current_user, 'hydracore_app', 'MEMBER') THEN
        EXECUTE format('GRANT hydracore_app TO %I', current_user);
    END IF;
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
