"""Everything on a relay host: compile, load, attach, pin; maps, links, routes; the agent."""
