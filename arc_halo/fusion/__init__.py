"""Reactors: several models that answer as one, and an account of every step.

Reactor
    Members, a graph between them and a strategy, under a name.
Member
    A model at its exact version, or an endpoint, in a role; what answers for it is given by whoever opens the reactor.
Level
    What a member can do: ``T`` answers a text, ``L`` gives log-probabilities of its tokens with it, ``N`` gives the
    logits of any next token.
Strategy
    How the members' answers become one.
Operation
    One question to a reactor: its calls of members, the decisions taken, and the joint answer. Stored as a whole, in
    one transaction, when it is over.
Call
    One member asked once within an operation, and what came of it.
State
    What a reactor has in mind: versions that are appended, never changed.
"""
