"""`shunt doctor`: what on this host keeps the relay from working, or from working well.

`gather` reads the system and changes nothing; `checks` are pure: facts in, findings out. `run` is
the command, `show` its words for people, `trial` the one part that loads something, on request.
"""
