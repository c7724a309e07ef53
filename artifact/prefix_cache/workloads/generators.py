"""Seeded synthetic workloads with the shapes of the real ones: chat, few-shot, agent.

Lengths are drawn from log-normal distributions around those of the real traces; tokens are uniform over a vocabulary,
so that nothing is shared but what a generator shares on purpose.
"""

from __future__ import annotations

import numpy as np

from artifact.prefix_cache.workloads.traces import (
    Request,
    RequestTrace,
    Session,
    Tokens,
    chat_trace,
    collapsed_trace,
    from_requests,
)

VOCABULARY = 32_000


def _lengths(rng: np.random.Generator, mean: float, count: int) -> list[int]:
    """Log-normal lengths of at least one token with this mean and a coefficient of variation of about 1."""
    sigma = np.sqrt(np.log(2))
    return [max(1, int(x)) for x in rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count)]


def _tokens(rng: np.random.Generator, count: int) -> Tokens:
    return rng.integers(VOCABULARY, size=count, dtype=np.int32)


def chat(
    *,
    num_sessions: int = 100,
    sessions_per_s: float = 1.0,
    mean_turns: float = 12.0,
    mean_user_tokens: float = 80.0,
    mean_model_tokens: float = 115.0,
    header_tokens: int = 6,
    seed: int = 0,
) -> RequestTrace:
    """Conversations with their whole history, as long as ShareGPT's; all start with the same few header tokens."""
    rng = np.random.default_rng(seed)
    header = _tokens(rng, header_tokens)
    sessions = []
    for turns in 2 + rng.poisson(mean_turns - 2, num_sessions):
        session = Session([header], [False], [0.0])
        users, models = _lengths(rng, mean_user_tokens, turns), _lengths(rng, mean_model_tokens, turns)
        for user, model in zip(users, models, strict=True):
            session.add(_tokens(rng, user), from_model=False, pause_s=0.75 * user / 1.5)
            session.add(_tokens(rng, model), from_model=True, pause_s=0.0)
        sessions.append(session)
    return chat_trace("synthetic-chat", sessions, sessions_per_s=sessions_per_s, max_input_tokens=32_768)


def few_shot(
    *,
    num_requests: int = 1000,
    num_tasks: int = 40,
    sessions_per_s: float = 5.0,
    prompt_tokens: int = 1500,
    question_tokens: int = 60,
    output_tokens: int = 15,
    zipf: float = 1.1,
    seed: int = 0,
) -> RequestTrace:
    """Questions behind the examples of their task, tasks by Zipf's law: reuse is of purely shared inputs."""
    rng = np.random.default_rng(seed)
    prompts = [_tokens(rng, length) for length in _lengths(rng, prompt_tokens, num_tasks)]
    weights = 1 / np.arange(1, num_tasks + 1) ** zipf
    tasks = rng.choice(num_tasks, num_requests, p=weights / weights.sum())
    questions, outputs = (_lengths(rng, mean, num_requests) for mean in (question_tokens, output_tokens))
    requests = []
    for number, (task, question, output) in enumerate(zip(tasks, questions, outputs, strict=True)):
        tokens = np.concatenate([prompts[task], _tokens(rng, question)])
        requests.append(Request(number, 0, number / sessions_per_s, tokens, _tokens(rng, output)))
    return from_requests("synthetic-few-shot", requests)


def agent(
    *,
    num_sessions: int = 60,
    sessions_per_s: float = 1.0,
    response_time_s: float = 7.5,
    mean_turns: float = 25.0,
    system_tokens: int = 1200,
    mean_observation_tokens: float = 600.0,
    mean_action_tokens: float = 120.0,
    collapse_after: int | None = None,
    seed: int = 0,
) -> RequestTrace:
    """Tool loops behind one system prompt, with long observations; the history may collapse (see `collapsed_trace`)."""
    rng = np.random.default_rng(seed)
    system = _tokens(rng, system_tokens)
    sessions = []
    for turns in 2 + rng.poisson(mean_turns - 2, num_sessions):
        session = Session([system], [False], [0.0])
        observations = _lengths(rng, mean_observation_tokens, turns)
        for observation, action in zip(observations, _lengths(rng, mean_action_tokens, turns), strict=True):
            session.add(_tokens(rng, observation), from_model=False, pause_s=float(rng.poisson(response_time_s)))
            session.add(_tokens(rng, action), from_model=True, pause_s=0.0)
        sessions.append(session)
    name, limit = "synthetic-agent", 32_768
    if collapse_after is None:
        return chat_trace(name, sessions, sessions_per_s=sessions_per_s, max_input_tokens=limit)
    options = {"max_input_tokens": limit, "collapse_after": collapse_after}
    return collapsed_trace(f"{name}-collapsed", sessions, sessions_per_s=sessions_per_s, **options)
