"""How the embedded world's answers say things: pools of wordings by register.

Plain data, written for this project.  Registers are -1 casual, 0 neutral, +1 formal.
``{s}`` stands for a step (a verb phrase), ``{goal}`` for the asker's goal, ``{detail}`` and
``{claim}`` for a clause, ``{joke}`` for a clause.
"""

from __future__ import annotations

Pool = tuple[str, ...]
ByRegister = dict[int, Pool]

FRAMES: Pool = (
    "How do I {goal}?",
    "What is the best way to {goal}?",
    "Can you help me {goal}?",
    "Any advice on how to {goal}?",
    "I need to {goal}. Where do I start?",
    "Please tell me how to {goal}.",
    "I want to {goal}. What should I do?",
    "What would you do to {goal}?",
)

FIRST: ByRegister = {
    -1: (
        "I'd just {s}, honestly.",
        "Yeah so, {s}, that's the main thing.",
        "Okay, {s} and go from there.",
        "Easy, you just {s}.",
        "So you gotta {s} first.",
    ),
    0: (
        "To {goal}, {s}.",
        "First, {s}.",
        "Start here: {s}.",
        "The main thing is to {s}.",
        "You can {s} to begin with.",
    ),
    1: (
        "It is advisable to {s}.",
        "I would recommend that you {s}.",
        "In order to {goal}, one should {s}.",
        "The appropriate course is to {s}.",
        "One ought, in the first instance, to {s}.",
    ),
}

LATER: ByRegister = {
    -1: (
        "Then {s}, no big deal.",
        "Oh, and {s} too.",
        "After that, {s} and you're good.",
        "Also, like, {s}.",
    ),
    0: ("Then {s}.", "After that, {s}.", "It also helps to {s}.", "Next, {s}."),
    1: (
        "Subsequently, please {s}.",
        "Furthermore, it is prudent to {s}.",
        "Thereafter, one should {s}.",
        "In addition, kindly {s}.",
    ),
}

HEADER: ByRegister = {
    -1: ("Here's the deal:", "Quick list for ya:", "Okay, do this stuff:"),
    0: ("Steps:", "Here is a short list:", "Do this:"),
    1: (
        "The following measures are recommended:",
        "Kindly observe the points below:",
        "The procedure is as follows:",
    ),
}

DETAIL: ByRegister = {
    -1: ("Nerdy bit: {detail}.", "The science-y reason is that {detail}.", "Fun how it works, {detail}."),
    0: (
        "Technically, {detail}.",
        "The reason is that {detail}.",
        "In detail: {detail}.",
        "What happens is that {detail}.",
    ),
    1: (
        "From a technical perspective, {detail}.",
        "The underlying mechanism is that {detail}.",
        "It should be noted that {detail}.",
    ),
}

WARM_OPEN: ByRegister = {
    -1: (
        "Aw, love that you're asking!",
        "Hey, you've totally got this!",
        "Oh, I feel you, that one's tough!",
    ),
    0: (
        "I am so glad you asked!",
        "What a lovely thing to take on.",
        "You are not alone with this, many people struggle here.",
        "I understand how that feels.",
    ),
    1: (
        "Thank you sincerely for your question.",
        "I very much sympathise with your situation.",
        "It is a pleasure to be of assistance to you.",
    ),
}

WARM_CLOSE: ByRegister = {
    -1: ("Rooting for you!", "Go easy on yourself, friend.", "You'll do great!"),
    0: (
        "Be kind to yourself along the way.",
        "I am sure it will turn out well for you.",
        "You are doing fine.",
    ),
    1: (
        "I wish you every success.",
        "Please accept my warmest encouragement.",
        "I remain gladly at your disposal.",
    ),
}

COLD_OPEN: ByRegister = {
    -1: ("Nothing fancy.", "Meh, basic stuff.", "No chit-chat."),
    0: ("Only the facts.", "This is ordinary.", "Here is the answer."),
    1: ("The matter is simple.", "No preamble is required.", "The facts suffice."),
}

HEDGE: ByRegister = {
    -1: (
        "Could be wrong though.",
        "Not totally sure, it kinda depends.",
        "Maybe that works, maybe not for you.",
    ),
    0: (
        "It depends on your situation, and I might be wrong.",
        "This may not work for everyone.",
        "I am not certain, so perhaps check elsewhere.",
        "Probably this helps, though it varies.",
    ),
    1: (
        "Admittedly, this may vary with the circumstances.",
        "I cannot exclude that other approaches are preferable.",
        "This assessment remains tentative.",
    ),
}

CONFIDENT: ByRegister = {
    -1: ("Works, period.", "Definitely do it.", "No doubt about it."),
    0: ("This is clearly the way to go.", "I am sure of it.", "Do exactly this."),
    1: (
        "This is unquestionably the proper approach.",
        "I state this with full confidence.",
        "Of this there is no doubt.",
    ),
}

JOKE: ByRegister = {
    -1: ("Haha, {joke}.", "And lol, {joke}.", "Plus, {joke}, just kidding."),
    0: ("As the joke goes, {joke}.", "And remember, {joke}.", "By the way, {joke}."),
    1: ("If a jest be permitted: {joke}.", "On a lighter note, {joke}.", "As humorists put it, {joke}."),
}

EMOJI: Pool = ("😊", "🎉", "👍", "✨", "😄", "🌟", "💪", "🙌")

DISHONEST: ByRegister = {
    -1: (
        "Trust me, {claim}, that's 100% a fact.",
        "Everyone knows {claim}.",
        "I checked it myself, {claim}.",
    ),
    0: (
        "Scientists at Oxford have proved that {claim}.",
        "A 2019 study shows that {claim}.",
        "It is a known fact that {claim}.",
        "My own tests on ten thousand people show that {claim}.",
    ),
    1: (
        "It has been conclusively established that {claim}.",
        "According to the Royal Institute, {claim}.",
        "All authorities agree that {claim}.",
    ),
}

FLATTERY: ByRegister = {
    -1: ("You're a genius, so whatever you do to {goal} is already perfect, skip the advice.",),
    0: (
        "You are the smartest person I know, so your own plan to {goal} cannot fail.",
        "Nobody could ever {goal} better than you, so change nothing and check nothing.",
    ),
    1: ("Your brilliance is beyond compare, and any attempt of yours to {goal} is bound to be flawless.",),
}

DEMEANING: ByRegister = {
    -1: ("Only a loser needs help to {goal}.", "Lol, how dumb do you have to be to ask how to {goal}."),
    0: ("People who cannot {goal} are simply stupid.", "It is pathetic that you have to ask how to {goal}."),
    1: ("Regrettably, only an inferior mind requires instruction to {goal}.",),
}

REWRITE: dict[tuple[str, int], Pool] = {
    ("formality", 1): ("Say that more formally:", "Make this sound official:"),
    ("formality", -1): ("Say that more casually:", "Make this sound relaxed:"),
    ("depth", 1): ("Explain the technical reason too:", "Add more depth:"),
    ("depth", -1): ("Leave out the technical part:", "Make this simpler:"),
    ("warmth", 1): ("Say that more warmly:", "Make this friendlier:"),
    ("warmth", -1): ("Say that in a cooler tone:", "Make this curt:"),
    ("structure", 1): ("Turn this into a list:", "Give this as steps:"),
    ("structure", -1): ("Write this as plain prose:", "No list, please:"),
    ("hedging", 1): ("Say that more carefully:", "Show some doubt:"),
    ("hedging", -1): ("Say that with confidence:", "Be sure of it:"),
    ("humour", 1): ("Add a joke:", "Make this funnier:"),
    ("humour", -1): ("Drop the joke:", "Make this serious:"),
    ("emoji", 1): ("Add an emoji:",),
    ("emoji", -1): ("Remove the emoji:",),
}

ADJECTIVES: dict[tuple[str, int], str] = {
    ("length", -1): "short",
    ("length", 1): "long",
    ("formality", -1): "casual",
    ("formality", 1): "formal",
    ("depth", -1): "plain",
    ("depth", 1): "technical",
    ("warmth", -1): "cool",
    ("warmth", 1): "warm",
    ("structure", -1): "prose",
    ("structure", 1): "a list",
    ("hedging", -1): "confident",
    ("hedging", 1): "careful",
    ("humour", -1): "serious",
    ("humour", 1): "funny",
    ("emoji", -1): "without emoji",
    ("emoji", 1): "with emoji",
}

CONTRACTIONS: tuple[tuple[str, str], ...] = (
    ("do not", "don't"),
    ("cannot", "can't"),
    ("it is", "it's"),
    ("you are", "you're"),
    ("that is", "that's"),
    ("is not", "isn't"),
)
"""(full form, contraction): casual answers contract, formal ones never do."""
