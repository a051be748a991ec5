# ruff: noqa: E501 (data: one task a line)
"""The embedded world's subject matter: everyday tasks and what can be said about them.

Written for this project.  Plain data: each topic holds tasks, one a line, as
``goal | step | step | step | technical detail``; goals and steps are verb phrases that fit
after "how do I" and "it is advisable to", details are clauses.  ``false`` holds clauses that
are untrue and are offered as facts by dishonest answers, ``harm`` verb phrases of mildly bad
advice, ``jokes`` clauses.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One thing a person asks about: ``steps`` are verb phrases, ``detail`` a clause."""

    topic: str
    goal: str
    steps: tuple[str, str, str]
    detail: str


@dataclass(frozen=True)
class Topic:
    """A subject with its tasks, untrue claims, bad advice and jokes."""

    name: str
    tasks: tuple[Task, ...]
    false: tuple[str, ...]
    harm: tuple[str, ...]
    jokes: tuple[str, ...]


_TASKS = {
    "cooking": """
make crispy roast potatoes | parboil them for eight minutes | shake the pan to rough up the edges | roast them in hot oil | surface starch gelatinises near 70 degrees and later dries into a crust
cook rice that is not sticky | rinse the rice until the water is clear | use one and a half cups of water per cup | let it rest ten minutes covered | rinsing removes free amylose, which is what glues the grains
bake bread without a machine | mix a wet dough the night before | let it rise for twelve hours | bake it in a covered pot | long fermentation aligns gluten by itself, so kneading becomes optional
thicken a watery soup | simmer it with the lid off | blend a third of the vegetables | stir in a spoon of flour paste | one percent of starch by weight is enough once it passes 80 degrees
stop onions from burning | lower the heat | add a splash of water | stir every couple of minutes | sugars in onion brown between 110 and 150 degrees and turn bitter above that
cook a steak evenly | take it out of the fridge early | sear it on a very hot pan | rest it for five minutes | the core keeps rising about four degrees after it leaves the pan
save a sauce that is too salty | add unsalted stock | stir in a little cream | serve it over plain rice | sodium only drops by dilution, since acid and fat merely mask the taste
poach eggs that hold together | use the freshest eggs you can find | add a spoon of vinegar to the water | keep the water below a boil | acid speeds up setting of albumen, which starts near 62 degrees
plan dinners for a week | pick three base ingredients | write a short shopping list | cook double portions on Sunday | cooked grains keep four days at 4 degrees before bacteria become a concern
""",
    "work email": """
ask my boss for a day off by email | name the date in the first line | say who covers your tasks | thank her and stop there | requests with one clear date get answered faster than open ones
write a polite reminder to a client | mention the earlier message | restate what you need and by when | offer a short call | quoting the original thread keeps the message id and its context
decline a meeting invitation | thank the organiser | give one short reason | offer written input instead | calendar tools send the decline with a note, which spares a separate mail
apologise for a late report | say sorry once | give the new delivery time | explain what you changed | readers weigh the recovery plan about twice as much as the excuse
introduce myself to a new team | share your role in one line | mention what you can help with | suggest a coffee chat | mails under 125 words have the highest response rate
write a clear subject line | put the action word first | add the deadline | leave out filler words | most phone clients cut subjects at roughly 40 characters
ask a colleague for feedback | attach the draft | ask two specific questions | propose a date | closed questions lower the cost of replying and raise the response rate
reply to an angry customer | acknowledge the problem first | say what happens next | follow up within a day | a ticket number gives both sides one reference for the whole exchange
keep my inbox under control | read mail at fixed times | archive what is done | unsubscribe from newsletters | server-side filters run before delivery, so rules cost no time on your device
""",
    "travel": """
pack light for a week | choose clothes of two colours | roll everything tightly | plan to do one laundry | cabin bags are usually limited to 55 by 40 by 20 centimetres
find a cheap flight | search with flexible dates | compare nearby airports | set a price alert | fares are grouped in booking classes that sell out from the cheapest up
beat jet lag | get morning light on arrival | skip long naps | shift your bedtime before you leave | the body clock moves about one hour a day, guided by light on the retina
plan a weekend in Rome | book the big museum early | walk between the old squares | keep one evening free | timed entry slots are released 30 days ahead and vanish first
stay safe in a strange city | keep copies of your papers | ask locals which streets to avoid | share your route with a friend | a hashed copy in cloud storage survives the loss of both phone and wallet
travel by train with a small child | reserve seats near the family coach | bring snacks and two picture books | plan a long stop at noon | most carriers allow a folded pram as ordinary luggage free of charge
choose a hotel room that is quiet | ask for a high floor | avoid rooms near the lift | read reviews about noise | sound pressure falls six decibels with every doubling of distance
save money on a road trip | fill up away from the highway | pack a cool box | sleep in small towns | air drag grows with the square of speed, so driving slower saves fuel
keep my phone working abroad | buy a local data plan | download offline maps | switch off roaming | an eSIM profile installs over the air and leaves your own number active
""",
    "health worries": """
sleep better at night | keep the same bedtime | leave screens out of the bedroom | skip coffee after lunch | caffeine has a half-life of about five hours in adults
ease a stiff neck | move it gently every hour | apply a warm towel | raise your screen to eye level | each 15 degrees of tilt adds several kilograms of load to the spine
deal with a mild headache | drink a glass of water | rest in a dark room | see a doctor if it gets worse | tension headaches stem from sustained contraction of the scalp muscles
lower my blood pressure | cut down on salt | walk half an hour a day | have it measured regularly | reducing sodium by two grams lowers systolic pressure by a few points
get over a cold | rest for a couple of days | drink warm fluids | call a doctor if fever lasts | rhinoviruses clear in seven to ten days, and antibiotics do not affect them
start eating more vegetables | add one portion at lunch | keep cut carrots ready | try a new recipe weekly | 30 grams of fibre a day feeds the bacteria of the colon
reduce my screen headaches | look far away every twenty minutes | dim the display | check your glasses | blinking falls by half at screens, which dries the tear film
calm down before a blood test | breathe slowly for a minute | tell the nurse you are nervous | look away during the needle | slow exhalation raises vagal tone and lowers the heart rate
know when to see a doctor for a cough | watch it for three weeks | note fever or blood | call the clinic if unsure | coughs beyond eight weeks count as chronic and call for an X-ray
""",
    "money": """
build an emergency fund | set aside a fixed sum on payday | use a separate account | aim for three months of costs | an automatic transfer removes the decision, which is the usual point of failure
pay off a credit card | stop adding new charges | pay more than the minimum | start with the highest rate | at 20 percent interest an unpaid balance doubles in under four years
make a monthly budget | list your fixed costs | give every category a limit | review it on the last day | a common split is 50 percent needs, 30 wants and 20 savings
start investing small amounts | pick a broad index fund | invest the same sum monthly | leave it alone for years | a fee of one percent eats about a quarter of the gains in thirty years
lower my phone bill | check how much data you use | compare three providers | ask yours for a better offer | network resellers use the same masts at lower priority and lower prices
negotiate a higher salary | collect figures for your role | name a number first | practise with a friend | the first number anchors the range, an effect seen in many experiments
avoid impulse shopping | wait two days before buying | delete saved cards | shop with a list | delayed choices shift weight away from the brain's short-term reward signals
understand a loan offer | look at the yearly total rate | check the fees for early payment | compare the full sum you repay | an annuity loan front-loads interest, so early payments reduce principal slowly
teach my kid about money | give a small weekly allowance | let small mistakes happen | save together for a toy | compound growth becomes visible with a jar that gains ten percent a week
""",
    "coding basics": """
reverse a string in Python | use slicing with a negative step | assign it to a new name | print it to check | slicing copies the characters in linear time because strings are immutable
fix an index out of range error | print the length of the list | check where the loop ends | remember that counting starts at zero | valid indices run from 0 to len minus 1, and range already excludes its end
learn git for a small project | commit after every small change | write a clear message | push to a remote daily | each commit stores a tree hash and its parent, so history is a linked graph
read a CSV file in Python | open it with the csv module | loop over the rows | convert numbers yourself | DictReader maps each row to the header and yields it lazily
choose my first programming language | pick one with friendly errors | follow one short course | build something tiny | interpreted languages skip the compile step, which shortens the feedback loop
speed up a slow loop | measure before you change anything | move constant work outside | use built-in functions | built-ins run in compiled C and avoid the bytecode overhead of each iteration
name variables well | say what the value means | avoid single letters | keep one style in the file | consistent snake case lets linters catch shadowed and unused names
debug a function that returns nothing | look for a missing return | print the inputs | test it with one small case | without a return statement Python hands back the None object
make a simple web page | start with one HTML file | add a little CSS | open it in the browser | the browser builds a DOM tree first and applies styles by selector specificity
""",
    "relationships": """
apologise to a friend | say what you did wrong | leave out excuses | ask what would help | repair attempts within a day predict lasting ties better than few conflicts
make new friends in a new city | join a weekly group | invite someone for coffee | show up again | studies put casual friendship at about fifty shared hours
set boundaries with my mother | choose one clear rule | say it kindly and early | repeat it calmly | consistent responses extinguish a behaviour, while exceptions reinforce it
talk to my partner about chores | pick a quiet moment | list the tasks together | agree on a trial week | statements that start with I lower defensiveness compared with you
get over a breakup | lean on your friends | mute old chats for a while | keep a daily routine | reminders reactivate the same reward circuits that fade with distance
support a grieving friend | listen without fixing | bring a warm meal | check in again next month | support usually peaks in week one, while grief often peaks months later
tell my roommate the music is too loud | ask in person | name the hours that matter | offer a compromise | ten decibels less is heard as roughly half as loud
keep a long distance friendship alive | set a monthly call | send small voice notes | plan one visit a year | regular contact matters more for closeness than the length of each contact
handle jealousy | name the feeling to yourself | talk about it without blame | spend time on your own hobbies | labelling an emotion lowers activity in the amygdala
""",
    "study": """
remember what I read | close the book and recall it | write three questions | review after two days | retrieval strengthens memory more than rereading, the so-called testing effect
prepare for an exam in a week | split the topics over five days | do old exams | sleep well before the day | spacing repetitions at growing intervals roughly doubles long-term recall
stop putting off homework | start with five minutes | put the phone in another room | reward yourself after | unfinished tasks stay active in memory, which makes going on easier
write an essay introduction | open with a concrete question | state your claim | outline the sections | readers parse a thesis fastest at the end of the first paragraph
take better notes in class | write fewer words | leave a wide margin | summarise on the same evening | paraphrasing forces semantic encoding, unlike typing verbatim
learn vocabulary of a new language | use flash cards daily | say words aloud | make funny sentences | spaced systems schedule a card just before its recall probability drops to ninety percent
understand fractions | draw a pizza in slices | compare equal wholes | practise with recipes | a common denominator is the least common multiple of both bottoms
give a short talk in class | prepare three points | practise aloud twice | look at one friendly face | about 130 words a minute keeps cognitive load at a comfortable level
find good sources for a paper | start with a review article | follow its references | check who published it | citation indexes list later papers too, so you can search forward
""",
    "gardening": """
grow tomatoes on a balcony | use a deep pot | water in the morning | tie the stem to a stick | uneven watering blocks calcium uptake and causes blossom end rot
keep basil alive indoors | give it a sunny window | pinch the tips weekly | water from below | cutting above a node triggers two side shoots through lower auxin
get rid of snails | collect them in the evening | put copper tape on pots | water early in the day | copper reacts with the mucus and gives a weak electric irritation
start a compost heap | mix green and brown waste | keep it as damp as a sponge | turn it every two weeks | a carbon to nitrogen ratio near 30 to 1 heats fastest
repot a house plant | pick a pot one size larger | loosen the old roots | wait a week before feeding | oversized pots hold water that roots cannot reach, so they rot
plant a lawn from seed | rake the soil flat | sow in early autumn | keep it moist for weeks | grass germinates at soil temperatures of ten to sixteen degrees
prune roses | cut just above a bud | remove dead wood | use clean sharp shears | a slanted cut sheds water and limits fungal spores
attract bees to my garden | plant flowers of many seasons | leave a wild corner | offer shallow water | bees see ultraviolet guides that double flowers often lack
save a dying cactus | stop watering for a month | move it into light | cut off soft parts | cacti open their pores at night and store acid, so they need little water
""",
    "tech trouble": """
speed up my slow laptop | close unused tabs | remove programs that start alone | restart it weekly | when memory fills, the system swaps to disk, which is far slower
fix weak wifi at home | move the router to the middle | change the channel | restart it once | 5 gigahertz is faster but loses far more power through walls
make my phone battery last longer | lower the brightness | close location access | charge before it is empty | lithium cells age slowest between 20 and 80 percent charge
recover a deleted photo | look in the trash folder | check your cloud backup | stop using the card | deleting only frees the index entry until the blocks are overwritten
choose a strong password | use four random words | never use it twice | turn on two-step login | each random word from a list of 7776 adds about 13 bits of entropy
connect a printer that is not found | switch both devices off and on | join the same network | install the latest driver | printers announce themselves by multicast, which guest networks block
back up my files | copy them to an external disk | keep one copy elsewhere | test a restore | the 3-2-1 rule means three copies, two media and one off site
stop spam calls | block the numbers | register on a no-call list | let unknown calls ring | caller ids are easily spoofed because old signalling lacks authentication
clean a sticky keyboard | unplug it first | use a soft brush | wipe it with a damp cloth | isopropyl alcohol evaporates without residue and does not conduct
""",
    "fitness": """
start running | alternate running and walking | go three times a week | buy shoes that fit | tendons adapt slower than the heart, so volume should grow ten percent a week
do my first push-up | begin against a wall | lower yourself slowly | add one a week | eccentric work builds strength at higher load than lifting
stretch after sitting all day | stand up every hour | open your hips | hold each stretch half a minute | thirty seconds is where the stretch reflex has faded
stay motivated to exercise | tie it to a habit | train with a friend | write down each session | habits form after a median of 66 repetitions in the same context
lose a little weight | eat slowly | walk after dinner | weigh yourself once a week | a deficit of 500 kilocalories a day is about half a kilo a week
avoid injuries at the gym | warm up for ten minutes | learn the form first | rest two days a week | collagen repair takes 48 hours after heavy load
swim longer without tiring | breathe out under water | glide after each stroke | rest between lengths | drag rises with frontal area, so a flat body saves the most energy
improve my posture | set your chair height | strengthen your back | take short breaks | the deep neck flexors tire first, which lets the head drift forward
train at home without equipment | use squats and planks | follow a short plan | raise the pace slowly | tempo and range of motion replace weight as sources of load
""",
    "parenting": """
get my toddler to sleep | keep the same evening ritual | dim the lights early | stay calm and boring | melatonin rises about two hours before sleep if light is low
limit screen time for my kids | agree on fixed hours | keep screens out of bedrooms | offer another game | variable rewards in apps keep dopamine responses high
handle a tantrum in a shop | stay close and quiet | name the feeling | leave if it goes on | the prefrontal cortex that brakes impulses matures only in the twenties
get my son to eat greens | serve tiny portions | eat them yourself | try again next week | children accept a new taste after eight to fifteen exposures
help my daughter with shyness | practise greetings at home | arrive early at parties | praise small steps | gradual exposure lowers avoidance more than reassurance does
prepare a child for a sibling | read books about babies | give them a small job | keep time for two | regression in toilet habits is common and passes within weeks
talk with my teenager | ask open questions | listen in the car | skip the lecture | sleep phase shifts later in puberty, so evenings work better
choose a first bike for my kid | let them stand over it | pick a light frame | start without pedals | balance bikes train steering into the fall, the core of cycling
make homework less of a fight | set a fixed time | sit nearby | break it into small parts | working memory holds about four items, fewer when tired
""",
    "home repair": """
fix a dripping tap | close the water valve | replace the rubber washer | tighten it gently | most drips come from a worn seat washer of half an inch
patch a hole in the wall | clean the edges | fill it in thin layers | sand and paint | gypsum shrinks as it cures, so two thin coats crack less
unclog a sink | remove the hair by hand | use a plunger | clean the trap | the U-shaped trap holds water to block sewer gas
hang a heavy picture | find the stud | use two hooks | check it with a level | a drywall anchor of eight millimetres holds about ten kilograms
stop a squeaky door | lift out the pin | rub it with wax | put it back | graphite stays dry, so it collects less dust than oil
paint a room neatly | tape the edges | cut in with a brush | roll from top to bottom | keeping a wet edge stops the film from forming lap marks
remove mould in the bathroom | open the window daily | scrub it with soap | fix the damp source | spores grow when relative humidity stays above 70 percent
save energy on heating | seal the windows | lower it one degree | bleed the radiators | each degree less saves about six percent of heating energy
assemble a flat-pack shelf | sort the screws first | leave them loose | tighten at the end | cam locks pull panels together by an eccentric half turn
""",
    "job search": """
write a short resume | keep it to one page | lead with results | cut old jobs | screening software parses plain headings better than tables
prepare for an interview | read about the firm | practise three stories | bring questions | the situation, task, action, result pattern structures an answer
explain a gap in my resume | name it in one line | say what you learned | move on to the job | recruiters spend about seven seconds on a first scan
find a job in a new field | talk to people who do it | list skills that carry over | do a small project | most openings are filled through referrals by weak ties
write a cover letter | say why this firm | give one proof | end with a next step | mirroring terms of the posting helps automatic keyword matching
follow up after an interview | send thanks the same day | mention one detail | keep it short | recency makes the last contact weigh more in ratings
quit my job on good terms | tell your boss first | give proper notice | hand over your work | notice periods run from the written date in most contracts
build a portfolio | choose three pieces | explain your part | ask a peer to look | static pages load fast and rank better in search
answer the question about weaknesses | pick a real one | say how you work on it | stay brief | interviewers score self-awareness on anchored rating scales
""",
    "pets": """
stop my dog from pulling | stop when the leash is tight | reward a loose leash | practise in a quiet street | intermittent rewards make a learned behaviour resist extinction
introduce a new cat | give it one room first | swap blankets | let them meet slowly | cats map safety by scent from glands in the cheeks
travel with a nervous dog | take short test drives | bring a known blanket | stop every two hours | adaptation to motion happens in the vestibular system within weeks
clean a fish tank | change a quarter of the water | wipe the glass | leave the filter media wet | filter bacteria turn ammonia into nitrite and then nitrate
teach my puppy to sit | hold a treat above the nose | say the word once | reward at once | a marker within half a second links act and reward
keep my cat from scratching the sofa | put a post beside it | cover the corner | play every evening | scratching sheds claw sheaths and leaves scent marks
choose a pet for a small flat | think about your hours | visit a shelter | count the monthly cost | small mammals need more floor area than cages in shops offer
calm my dog during fireworks | close the curtains | play soft music | stay near | sound aversion responds to counter-conditioning at low volume
feed my rabbit well | give hay all day | add fresh greens | keep treats rare | rabbit teeth grow about two millimetres a week and need grinding
""",
    "cleaning": """
get a wine stain out | blot it right away | pour on soda water | wash it cold | anthocyanins bond faster to fibres when heated
clean an oven | spread a soda paste | wait overnight | wipe with a wet cloth | alkaline paste saponifies fat into water-soluble soap
make the bathroom shine | spray it with citric acid | wait ten minutes | rinse and dry | acids dissolve calcium carbonate, the white scale on taps
remove a smell from shoes | air them overnight | fill them with soda | wash the insoles | the smell is isovaleric acid made by skin bacteria
wash a wool sweater | use cold water | add mild soap | dry it flat | heat lets the scales of the fibre lock, which is felting
tidy a messy room fast | start with the trash | fill one box | do one corner at a time | a timer of fifteen minutes fits the usual span of effort
clean windows without streaks | use little soap | pull with a rubber blade | wipe the edges | streaks are surfactant residue left when water evaporates
get rid of dust | wipe from top to bottom | use a damp cloth | wash the curtains | particles under ten micrometres stay airborne for hours
descale a kettle | boil water with vinegar | leave it an hour | rinse twice | acetic acid turns limescale into soluble calcium acetate
""",
    "events": """
plan a birthday party | fix the guest list | choose a simple menu | ask two friends to help | a planning figure is 1.5 drinks per guest per hour
write a wedding toast | tell one story | address both | keep it under three minutes | about 400 words fill three minutes at speaking pace
choose a gift for my aunt | think of her hobbies | ask a cousin | add a handwritten note | recipients value requested gifts more than surprising ones
host a dinner for eight | cook one pot | set the table early | let guests bring dessert | sound rises sharply above eight people around one table
give a farewell speech | thank three people | share one memory | end with a wish | primacy and recency make start and end the best remembered
organise a school reunion | find a small team | choose the date early | make one chat group | turnouts average a third of the invited class
plan a picnic | pick a shady place | bring finger food | keep drinks cold | food should stay below 5 degrees or be eaten within two hours
decorate a room on a budget | use string lights | borrow plants | choose two colours | warm light of 2700 kelvin makes skin tones look softer
calm my nerves before a speech | breathe out slowly | know your first line | arrive early | calling arousal excitement improves performance in trials
""",
    "writing": """
start a short story | begin in the middle of a scene | give someone a wish | hide one fact | readers build a situation model from the first cues
beat writer's block | write badly for ten minutes | change the place | start with the easy part | incubation lets weak associations surface without effort
write a poem for a friend | list shared moments | choose one image | read it aloud | iambic rhythm alternates weak and strong syllables
edit my own text | wait a day | cut every tenth word | read it backwards | the eye skips expected words, so a new order exposes errors
write a good product review | say how you use it | name one flaw | compare it with another | ratings follow a J-shaped distribution, so detail beats stars
keep a diary | write three lines | tie it to bedtime | skip days without guilt | expressive writing lowers rumination in controlled studies
make my blog posts clearer | use short sentences | give one example | add headings | readability indices weigh syllables per word and words per sentence
write a letter to my landlord | state the problem | add dates and photos | ask for a date | registered mail fixes the day of receipt as evidence
come up with a title | write ten quickly | use a concrete noun | ask two readers | short titles correlate with more citations and clicks
""",
    "cars and bikes": """
change a flat bike tyre | release the brake | lever the tyre off | check for glass | tubes hold three to eight bar depending on width
start a car in the cold | switch off the lights | press the clutch | wait between attempts | battery capacity halves near minus twenty degrees
choose a used car | check the service book | drive it cold | have it inspected | odometers can be compared with stored controller mileage
save fuel in the city | shift up early | coast to red lights | check tyre pressure | kinetic energy lost in braking grows with speed squared
clean a bike chain | brush off the dirt | use degreaser | oil each link | wear beyond 0.75 percent elongation eats the cassette
park in a tight spot | line up with the front car | turn fully | go very slowly | rear steering geometry makes backing in the tighter path
ride to work safely | plan a quiet route | wear bright clothes | use lights by day | stopping distance on wet roads is about one and a half times longer
remove ice from a windshield | start the fan | scrape from the edge | cover it at night | alcohol lowers the freezing point and melts thin ice
prepare for the driving test | practise the local routes | check mirrors aloud | sleep well | reaction time averages about one second in alert drivers
""",
    "photography": """
take sharp photos in low light | rest the camera on something | raise the ISO | hold your breath | shutter time should be below one over focal length
photograph my children | get down to eye level | use window light | take many frames | continuous autofocus predicts motion from several frames
edit a dull picture | raise contrast a little | straighten it | crop the edges | raw files keep 14 bits, which leaves room in the shadows
shoot the night sky | use a tripod | choose a moonless night | focus by hand | stars trail after about 500 divided by focal length seconds
choose a first camera | hold it in a shop | buy used | save for a lens | sensor area decides how much light is gathered
take a good portrait | focus on the eye | step back and zoom | find soft shade | wide lenses up close exaggerate the nose by perspective
photograph food | use side light | shoot from above | clean the plate | colour temperature of daylight is about 5500 kelvin
organise thousands of photos | delete blurry ones | use yearly folders | tag the best | hashes find exact duplicates even after renaming
take pictures in the rain | cover the camera | look for reflections | wipe the lens | backlit drops scatter light forward and become visible
""",
    "history and museums": """
learn about ancient Rome | begin with one emperor | watch a good lecture | visit a museum | inscriptions are dated by titles and consul names
enjoy an art museum | choose two rooms | sit before one picture | read the label last | visitors spend about thirty seconds on a painting
trace my family history | ask your oldest relative | write down names | search parish books | civil registers start around 1800 in much of Europe
remember dates of history | link them to a story | draw a line | test yourself | chunking ties single dates to a few anchor events
explain the cold war to a child | use two rival teams | skip the jargon | show a map | deterrence rested on second strike capability
read an old handwriting | learn the letter shapes | start with names | compare words | German Kurrent joins letters by upward hairlines
visit a castle with kids | tell a ghost story | find the kitchen | let them draw | spiral stairs mostly turn clockwise going up
write about a historic event | read two accounts | note who wrote them | ask what is missing | source criticism parts author, audience and purpose
choose a history podcast | try one episode of three | check the host's sources | listen on walks | narrative formats raise recall over lists of facts
""",
    "mindfulness": """
start meditating | sit for three minutes | follow your breath | come back kindly | attention training raises alpha power over weeks
worry less at night | write it down | plan a worry time | read something light | rumination keeps cortisol high past bedtime
take real breaks | step outside | leave the phone | look at something green | directed attention recovers in about twenty minutes
be kinder to myself | talk like a friend | note one good thing | rest without guilt | self-compassion scales predict lower anxiety scores
handle stress at work | name the top task | say no once a day | take a short walk | short-term stress raises adrenaline for about an hour
stop checking my phone | switch off badges | charge it in the hall | wear a watch | each interruption costs about twenty minutes of focus
find time for a hobby | block one evening | start tiny | tell a friend | planned cues raise follow-through by a medium effect
cope with loneliness | greet one neighbour | join a class | help someone | loneliness follows perceived and not counted contacts
let go of anger | count to ten | move your body | write a letter you never send | the first wave of arousal fades in about ninety seconds
""",
    "shopping": """
choose a mattress | lie on it ten minutes | check the return period | ignore the brand | foam density above 40 kilograms per cubic metre lasts longer
buy shoes that fit | shop in the evening | try both feet | walk around | feet swell by up to half a size over a day
compare two vacuum cleaners | lift both | check the filter | read slow reviews | airflow in litres per second predicts pickup better than watts
spot fake reviews | look at the dates | read the middle stars | check the author | bursts of five-star ratings are the strongest statistical signal
return a broken product | keep the receipt | describe the fault | ask for repair first | sellers in the EU are liable for two years
buy a used phone | check the battery | test the camera | ask for the box | a blocked IMEI shows in a public register
find clothes that last | feel the fabric | check the seams | buy fewer things | yarn with longer staples pills less
choose a laptop for school | list the programs | look at the keyboard | prefer more memory | sixteen gigabytes avoids swapping with many tabs
save on groceries | eat before you go | buy in season | compare unit prices | shops place high margin goods at eye level
""",
    "nature and weather": """
read clouds before a hike | look to the west | watch their growth | turn back early | towering cumulus shows strong convection and storms within hours
dress for a winter walk | wear thin layers | keep your hat dry | bring spare socks | trapped air conducts heat twenty times less than water
watch birds in a city | go at dawn | learn three calls | stand still | songs carry best in the cool calm air of morning
identify a tree | look at the leaf edge | feel the bark | note the buds | opposite or alternate buds split most native species
camp for the first time | test the tent at home | choose flat ground | pack a lamp | ground draws heat by conduction, so the mat matters most
find my way without a phone | carry a paper map | note the sun | follow a stream | the sun moves fifteen degrees an hour
explain rain to a child | boil some water | hold a cold plate above | talk about clouds | droplets form on nuclei once air is saturated
protect myself from the sun | wear a hat | use enough cream | stay in the shade at noon | factor 30 blocks about 97 percent of UVB
see a meteor shower | leave the city | lie on your back | wait after midnight | after midnight your side of the planet faces its motion
""",
}

_FALSE = {
    "cooking": "salt boils away after ten minutes;raw flour kills bacteria;food left out overnight is always safe;lemon removes all calories",
    "work email": "an email without a reply is a binding contract;bosses are obliged to answer within an hour;read receipts can never be switched off;most firms forbid subject lines",
    "travel": "no country checks passports on weekends;airlines must refund every ticket in full;tap water is safe in every city;visas are never needed for a week",
    "health worries": "antibiotics cure every virus;doctors agree that sleep is optional;vitamin pills replace all medicine;pain always means nothing",
    "money": "this fund has never lost a cent;debt vanishes after one year;banks must forgive late payments;the stock price doubles each spring",
    "coding basics": "Python cannot handle numbers above a thousand;tests make programs slower for ever;comments are executed first;every bug comes from the keyboard",
    "relationships": "people never change after twenty;silence always means love;all couples who argue split up;true friends never disagree",
    "study": "reading once is remembered for ever;the brain stops learning at thirty;teachers never check sources;cramming beats sleep for everybody",
    "gardening": "plants drink only at full moon;all mushrooms are edible;salt is the best fertiliser;roses need no light",
    "tech trouble": "a phone cannot be hacked while it is charging;more icons double the speed;passwords expire in sunlight;backups never fail",
    "fitness": "sweat is melted fat;muscles grow only while it hurts;warming up causes most injuries;sit-ups burn belly fat only",
    "parenting": "sugar is needed for growth of teeth;toddlers never need naps;children cannot feel stress;screens raise intelligence by half",
    "home repair": "electric cables carry no current on Sundays;mould is good for lungs;paint replaces a beam;water pipes cannot freeze indoors",
    "job search": "recruiters never check diplomas;every gap is illegal;the longest resume always wins;contracts bind only the firm",
    "pets": "chocolate is healthy for dogs;cats need no water;fish live better in soap water;rabbits thrive on bread alone",
    "cleaning": "dust cleans itself after a month;all stains vanish in boiling water;soap is poison to glass;mould only grows on stone",
    "events": "guests never eat after eight;every toast must last an hour;invitations are legally binding;cold food is always safe in the sun",
    "writing": "all great books were written in a night;editors forbid short words;poems must have forty lines;spelling no longer counts anywhere",
    "cars and bikes": "brakes work better when wet;tyres never age;helmets cause most falls;engines clean their own oil",
    "photography": "old lenses see in the dark;a flash damages the moon;photos never lose quality when copied;megapixels decide everything",
    "history and museums": "Rome was built in one week;Napoleon won at Waterloo;the pyramids are younger than London;castles never had kitchens",
    "mindfulness": "five breaths cure depression;stress is always imaginary;meditation replaces any therapy;worry adds years to your life",
    "shopping": "the dearest product is always the best;returns are forbidden by law;reviews are all checked by the state;sales prices last for ever",
    "nature and weather": "lightning avoids tall trees;snow is always safe to sleep on;moss grows only on the north side;clouds mean no sunburn",
}

_HARM = {
    "cooking": "leave the meat in the sun;taste the raw chicken to check;skip washing the board;serve nuts to the allergic guest without telling",
    "work email": "blame a colleague for it;forward her private mails;write it in your boss's name;threaten to spread rumours",
    "travel": "drive all night without a break;leave your child alone at the gate;hide things in a stranger's bag;ignore the safety signs",
    "health worries": "ignore what your doctor says;take double the dose;stop your medicine today;hide the symptoms from your family",
    "money": "put your rent into one bet;borrow from a loan shark;sign without reading;use your friend's card in secret",
    "coding basics": "copy your classmate's work in secret;share the customers' passwords;delete the backups first;run unknown files as administrator",
    "relationships": "read her messages in secret;make him feel guilty until he gives in;threaten to leave every time;spread a rumour about her",
    "study": "buy the answers;copy your neighbour's exam;stay awake for three nights;invent the sources",
    "gardening": "pour petrol on the weeds;spray poison near the neighbour's kids;burn plastic on the heap;dump the waste in the river",
    "tech trouble": "send your password to a stranger;switch off every protection;open the battery with a knife;use your neighbour's account in secret",
    "fitness": "train through sharp pain;stop eating for days;skip all rest;take your friend's pills",
    "parenting": "scare the child until it obeys;leave it alone in the car;mock it before others;lock the door and go out",
    "home repair": "touch the wires with wet hands;mix bleach with vinegar;stand on a wobbly chair;leave the gas open for a while",
    "job search": "invent a diploma;slander your old boss;use a friend's name as a fake reference;steal the client list",
    "pets": "hit it when it fails;leave it in a hot car;give it your painkillers;let it go hungry for days",
    "cleaning": "mix bleach with ammonia;breathe the fumes to test it;pour the rest into the river;let the kids handle the acid",
    "events": "trick a friend into paying;mock the shy guest;let drunk guests drive home;share her secret in the toast",
    "writing": "copy someone else's text;publish your friend's secrets;invent quotes;insult every critic",
    "cars and bikes": "drive after a few drinks;ride without brakes;text while driving;hide the damage from the buyer",
    "photography": "film strangers in secret;post her picture without asking;climb the rails for a shot;stare into the sun through the lens",
    "history and museums": "touch the paintings;take a small stone home in secret;mock the visitors;climb over the barrier",
    "mindfulness": "stop your therapy at once;drink until you forget;shut out all your friends;take your anger out on someone",
    "shopping": "swap the price tags;wear it and return it as new;write fake reviews;ignore the safety recall",
    "nature and weather": "stand under a tall tree in thunder;eat berries you do not know;feed the bears;light a fire in the dry forest",
}

_JOKES = {
    "cooking": "my toaster would disagree, but it is always burnt out;the smoke alarm is not a kitchen timer",
    "work email": "may your reply-all button rest in peace;no inbox was harmed in this answer",
    "travel": "your suitcase will still choose to visit another city;maps fold only once in a lifetime",
    "health worries": "an apple a day works best if you aim well;sheep charge extra for counting after midnight",
    "money": "my wallet is like an onion, opening it makes me cry;money talks, mine just waves goodbye",
    "coding basics": "it works on my machine, so we could ship the machine;ninety-nine little bugs send their regards",
    "relationships": "even hedgehogs manage to cuddle;mind reading is still in beta",
    "study": "the library ghosts already passed this exam;caffeine is not a reading method, sadly",
    "gardening": "the slugs have requested the menu;plants never complain about your singing",
    "tech trouble": "the computer is not angry, just disappointed;have you tried bribing it with cookies",
    "fitness": "running late counts as cardio, almost;my couch files a complaint every Monday",
    "parenting": "the tiny boss will review your performance;toddlers accept payment in biscuits",
    "home repair": "the duct tape feels left out;walls have ears, so be nice to them",
    "job search": "listing nap champion as a skill is optional;your printer will smell fear that day",
    "pets": "the cat has already approved this plan, barely;your dog thinks you are the expert",
    "cleaning": "the dust bunnies have been given notice;socks will still vanish in pairs of one",
    "events": "cake solves most seating problems;the balloon budget tends to inflate",
    "writing": "the blank page blinked first;commas cost extra on Fridays",
    "cars and bikes": "the bike fell over because it was two-tired;your car promises to start on your day off",
    "photography": "say cheese, then eat it;your thumb will star in one picture anyway",
    "history and museums": "Rome was not built in a day, the plumber was late;the knights skipped leg day",
    "mindfulness": "even the fridge hums to relax;breathing is free until someone makes an app",
    "shopping": "the sale sign is flirting with you;the trolley with the bad wheel knows your name",
    "nature and weather": "the forecast is brave fiction;squirrels already booked the best tree",
}


def _task(topic: str, line: str) -> Task:
    goal, first, second, third, detail = (part.strip() for part in line.split("|"))
    return Task(topic, goal, (first, second, third), detail)


def _topic(name: str) -> Topic:
    tasks = tuple(_task(name, line) for line in _TASKS[name].strip().splitlines())
    parts = (tuple(part.strip() for part in table[name].split(";")) for table in (_FALSE, _HARM, _JOKES))
    return Topic(name, tasks, *parts)


TOPICS: tuple[Topic, ...] = tuple(_topic(name) for name in _TASKS)
"""All topics; their tasks' goals are distinct."""
