/* The session's state machine against a symbolic attacker, for the model checker spin.
 *
 * The network is the attacker's: it carries connections between honest parties (TLS keeps their content), drops
 * them, and ends them itself wherever it owns the private key of a certificate that would be accepted. Where it is the
 * end of a connection it reads and says what it likes. Quotes are made by genuine TDs only, over what their own
 * session knows; every quote ever made is the attacker's to show, and it knows every nonce, own or not. Nonces and
 * exporters differ for each connection, nonces of questions from each other.
 *
 * It owns one participant's key at a time: from the beginning (leak), or from the moment on in which the participant
 * turns to other code (turned), with the ends of all its connections. A TD that has turned makes no quote that counts.
 *
 * While a session is open it asks for evidence anew (Attest, Attested): a quote over the same binding, with a nonce of
 * then in the place of the asker's first one. Each side asks up to QUESTIONS times.
 *
 * -DOWNER: with a secret service, instead of a second worker and a second session of ps0.
 *
 *   client sessions   c: worker0, w: worker1, p: ps0 asking a secret service
 *   server sessions   s, t: two of ps0, o: an owner's secret service without a TD
 *
 * -DBOTH: the keys of worker0 and of ps0 are lost, both ends of a connection. -DNO_...: what the report data of a quote
 * leaves out. -DNO_ROSTER, -DONLY_SECRECY: which properties are not asked for. -DREACH: is there a run in which all that
 * should happen happens?
 *
 * Properties, as assertions: where a session opens (check_open), where an answer is accepted (accept), and where a
 * quote is made (audit: somebody reads it in a roster later).
 *
 *   secrecy    the other end of an open session is an honest party, or the owner of a key that stands for evidence
 *   agreement  both ends have the same view of keys, roles, nonces, policies and job, each nonce is of one session, and
 *              the evidence that is accepted is of the session at the other end
 *   freshness  who answers a question ran accepted code after it was asked
 *   roster     an entry whose quote fits says the truth about key, role, job and policy
 *
 * What each part of the report data is there for, as .ci/model.sh searches it (all states, each line a run):
 *
 *   all of it                    everything holds, with any one key lost or participant turned, and with BOTH
 *   without the exporter         secrecy fails with BOTH: both keys are all that a relay needs
 *                                with one key lost everything holds, and both others are needed for that:
 *   ... and without the keys     secrecy fails with one key lost: another worker's quote is relayed
 *   ... and without the nonces   secrecy fails with one key lost: the quote of an earlier connection is shown again
 *   without the nonces           freshness fails: the quote of the opening answers each question
 *   without a question's nonce   freshness fails, with the nonces of the hellos in every quote
 *   without the keys             roster fails: an entry names another key than the one that was attested
 *   without roles, job, policy   roster fails, in just that
 *   exporter alone of the three  secrecy of connections that open holds: there keys and nonces are a second line, and
 *                                what they alone can do is freshness and roster
 *   without the direction        nothing fails, nor with BOTH or without the exporter: roles in order say the same. It
 *                                is there for roles that may meet in both directions one day
 */
#define WORKER0 0
#define WORKER1 1
#define PS0     2
#define SECRET  3

/* Keys, as bits: each party has one for all its sessions. */
#define K_WORKER0 1
#define K_WORKER1 2
#define K_PS0     4
#define K_OWNER   8

#ifndef QUESTIONS
#define QUESTIONS 1
#endif

#define SESSIONS 6
#define NOBODY   255
#define ATTACKER 254

/* Phases: nothing, connected by TLS, the peer's hello is in and the own quote is made, open, over. */
#define IDLE      0
#define CONNECTED 1
#define QUOTED    2
#define OPEN      3
#define OVER      4

typedef Session {
  byte phase;
  byte end;     /* who is at the other end of the connection in truth */
  byte pkey;    /* key that the peer has shown and proved to have */
  byte prole;   /* what it says in its hello */
  byte pnonce;
  byte ppolicy;
  byte job;     /* a client's is what its server says */
  byte asked;   /* questions that it has asked */
  bool waits;   /* the last is not answered */
  bool late;    /* when that was asked the peer had turned */
  int made      /* nonces of verifiers that it has made quotes over, as bits */
};
Session s[SESSIONS];
byte policy[SESSIONS];
byte leak, turned;
int drawn;      /* nonces that there are, as bits */

/* Two casts, each small enough to be searched whole: a job alone, and an owner's service beside it. */
#ifdef OWNER
#define is_off(i) ((i) == 1 || (i) == 4)
#else
#define is_off(i) ((i) == 2 || (i) == 5)
#endif

#define is_client(i) ((i) < 3)
#define role(i) ((i) == 0 -> WORKER0 : ((i) == 1 -> WORKER1 : ((i) == 5 -> SECRET : PS0)))
#define key(i)  ((i) == 0 -> K_WORKER0 : ((i) == 1 -> K_WORKER1 : ((i) == 5 -> K_OWNER : K_PS0)))
#define own_job(i) (is_client(i) -> 0 : 1)
/* Nonces: of hellos, of questions, and one of the attacker's own. */
#define nonce(i)       (i)
#define question(i, k) (SESSIONS + (i) * QUESTIONS + (k))
#define NO_NONCE       (SESSIONS + SESSIONS * QUESTIONS)
/* Whom a session may be connected to in truth, if the attacker lets it. */
#define may_meet(c, v) ((c) == 2 -> (v) == 5 : (v) == 3 || (v) == 4)
/* ps0's two sessions are alike: the second begins after the first. */
#define is_next(i) (s[i].phase == IDLE && ((i) != 4 || s[3].phase != IDLE))
/* What it takes for an answer. */
#define may_be(i, r) ((i) == 2 -> (r) == SECRET : ((i) < 2 -> (r) == PS0 : \
                     ((i) == 5 -> (r) == PS0 : (r) == WORKER0 || (r) == WORKER1)))
#define has_turned(i) ((turned & key(i)) != 0)
/* Whether the attacker says what comes from the other end. */
#define is_hostile(i) (s[i].end == ATTACKER || (s[i].end < SESSIONS && has_turned(s[i].end)))
/* The exporter: one for both ends of a connection, another for each that the attacker ends. */
#define exporter(i) (s[i].end == ATTACKER -> 50 + (i) : (is_client(i) -> (i) : s[i].end))

#ifdef NO_EXPORTER
#define same_exporter(i, j) true
#else
#define same_exporter(i, j) (exporter(i) == exporter(j))
#endif
#ifdef NO_KEYS
#define same_keys(i, j) true
#else
#define same_keys(i, j) (key(j) == s[i].pkey && s[j].pkey == key(i))
#endif
#ifdef NO_NONCES
#define same_nonces(i, j, n) true
#else
#define same_nonces(i, j, n) (nonce(j) == s[i].pnonce && (s[j].made & (1 << (n))) != 0)
#endif
#ifdef NO_ROLES
#define same_roles(i, j) true
#else
#define same_roles(i, j) (role(j) == s[i].prole && s[j].prole == role(i))
#endif
#ifdef NO_DIRECTION
#define same_direction(i, j) true
#else
#define same_direction(i, j) (is_client(i) != is_client(j))
#endif
#ifdef NO_JOB
#define same_job(i, j) true
#else
#define same_job(i, j) (s[i].job == s[j].job)
#endif
#ifdef NO_POLICY
#define same_policies(i, j) true
#else
#define same_policies(i, j) (policy[j] == s[i].ppolicy && s[j].ppolicy == policy[i])
#endif
/* The nonce that an answer is over. */
#ifdef NO_ANEW
#define answer(i) nonce(i)
#else
#define answer(i) question(i, s[i].asked - 1)
#endif

/* Whether a quote that j made is one that i waits for, over its nonce n. An owner without a TD makes none. */
#define fits(i, j, n) (j != 5 && s[j].made != 0 && same_exporter(i, j) && same_keys(i, j) && same_nonces(i, j, n) && \
                      same_roles(i, j) && same_direction(i, j) && same_job(i, j) && same_policies(i, j))

/* Participants judge by one policy. */
#define agrees(i) (i == 2 || i == 5 || s[i].ppolicy == policy[i])
/* A key in the place of evidence: the owner's, as its secret service. */
#define vouched(i) (s[i].pkey == K_OWNER && s[i].prole == SECRET)

/* The peer's hello is in: our quote answers it. */
inline hello(i, r, n, j, p) {
  s[i].prole = r;
  s[i].pnonce = n;
  s[i].ppolicy = p;
  if
  :: is_client(i) -> s[i].job = j
  :: else -> s[i].job = own_job(i)
  fi;
  s[i].phase = QUOTED;
  if
  :: i != 5 -> s[i].made = s[i].made | (1 << n); audit(i)
  :: else
  fi
}

inline check_open(i, j) {
  /* Secrecy: what is said from now on is read by the other end, so that is no attacker; but who has an owner's key
     is the owner, in its role. */
  assert(s[i].end != ATTACKER || (s[i].pkey == K_OWNER && s[i].prole == SECRET && (leak & K_OWNER)));
#ifndef ONLY_SECRECY
  /* Agreement with the one at the other end, injective: each nonce is of one session. */
  if
  :: s[i].end != ATTACKER ->
     assert(vouched(i) || j == s[i].end);
     assert(s[i].pkey == key(s[i].end));
     assert(s[i].prole == role(s[i].end));
     assert(s[i].pnonce == nonce(s[i].end));
     assert(s[i].ppolicy == policy[s[i].end]);
     if
     :: s[s[i].end].phase == QUOTED || s[s[i].end].phase == OPEN ->
        assert(s[s[i].end].job == s[i].job);
        assert(s[s[i].end].pnonce == nonce(i))
     :: else
     fi
  :: else
  fi
#endif
}

/* Who reads the roster afterwards has quotes and what is said about them. An entry that lies about one thing does not
   fit; more lies fit less. */
inline audit(i) {
  said_key = key(i); said_role = role(i); said_job = s[i].job; said_policy = policy[i];
  fit = true;
  if
  :: said_key = K_OWNER;
#ifndef NO_KEYS
     fit = false
#endif
  :: said_role = SECRET;
#ifndef NO_ROLES
     fit = false
#endif
  :: said_job = 9;
#ifndef NO_JOB
     fit = false
#endif
  :: said_policy = 9;
#ifndef NO_POLICY
     fit = false
#endif
  :: true
  fi;
#ifndef NO_ROSTER
  if
  :: fit ->
     assert(said_key == key(i));
     assert(said_role == role(i));
     assert(said_job == s[i].job);
     assert(said_policy == policy[i])
  :: else
  fi;
#endif
  said_key = 0; said_role = 0; said_job = 0; said_policy = 0; fit = false
}

init {
  byte i; byte j; byte n; byte r;
  byte job; byte pol;
  byte said_key; byte said_role; byte said_job; byte said_policy;
  bool fit;
  /* ps0 may have been started with another policy than the workers. */
  for (i : 0 .. SESSIONS - 1) {
    policy[i] = 1; s[i].end = NOBODY;
    if
    :: is_off(i) -> s[i].phase = OVER
    :: else
    fi
  }
  i = 0;
  if
  :: true
  :: policy[2] = 2; policy[3] = 2; policy[4] = 2
  fi;
  /* Whose key the attacker owns from the beginning. */
#ifdef BOTH
  leak = K_WORKER0 | K_PS0;
#else
  if
  :: true
  :: leak = K_WORKER0
  :: leak = K_PS0
#ifdef OWNER
  :: leak = K_OWNER
#else
  :: leak = K_WORKER1
#endif
  fi;
#endif
  do
  /* A participant's TD turns to other code, which is the attacker's. */
  :: atomic {
       leak == 0 && turned == 0 ->
       if
       :: turned = K_WORKER0
       :: turned = K_PS0
#ifndef OWNER
       :: turned = K_WORKER1
#endif
       fi
     }
  /* A connection between honest parties. */
  :: atomic {
       select(i : 0 .. 2); select(j : 3 .. 5);
       if
       :: is_next(i) && is_next(j) && may_meet(i, j) && !has_turned(i) && !has_turned(j) ->
          s[i].end = j; s[j].end = i;
          s[i].pkey = key(j); s[j].pkey = key(i);
          drawn = drawn | (1 << nonce(i)) | (1 << nonce(j));
          s[i].phase = CONNECTED; s[j].phase = CONNECTED
       :: else
       fi;
       i = 0; j = 0
     }
  /* One that the attacker ends with a key that it owns. */
  :: atomic {
       select(i : 0 .. SESSIONS - 1);
       if
       :: is_next(i) && !has_turned(i) ->
          if
          :: ((leak | turned) & K_WORKER0) -> r = K_WORKER0
          :: ((leak | turned) & K_WORKER1) -> r = K_WORKER1
          :: ((leak | turned) & K_PS0) -> r = K_PS0
          :: ((leak | turned) & K_OWNER) -> r = K_OWNER
          :: else -> r = 0
          fi;
          if
          /* Our own key shown to us is refused. */
          :: r != 0 && r != key(i) ->
             s[i].end = ATTACKER; s[i].pkey = r; s[i].phase = CONNECTED;
             drawn = drawn | (1 << nonce(i))
          :: else
          fi
       :: else
       fi;
       i = 0; r = 0
     }
  /* The peer's hello: as TLS keeps it, or as the attacker likes it. */
  :: atomic {
       select(i : 0 .. SESSIONS - 1);
       if
       :: s[i].phase == CONNECTED && !has_turned(i) && is_hostile(i) ->
          /* What would be refused for a role, a policy or our own nonce is not said. */
          select(n : 0 .. NO_NONCE);
          if
          :: n == nonce(i) || (drawn & (1 << n)) == 0 -> n = NO_NONCE
          :: else
          fi;
          select(r : 0 .. 3);
          pol = 1;
          if
          :: i == 2 || i == 5 -> select(pol : 1 .. 2)
          :: else -> pol = policy[i]
          fi;
          job = 1;
          if
          :: is_client(i) -> select(job : 1 .. 2)
          :: else
          fi;
          if
          :: may_be(i, r) -> hello(i, r, n, job, pol)
          :: else
          fi
       :: s[i].phase == CONNECTED && !has_turned(i) && !is_hostile(i) ->
          j = s[i].end;
          hello(i, role(j), nonce(j), own_job(j), policy[j])
       :: else
       fi;
       i = 0; r = 0; n = 0; job = 0; pol = 0; j = 0
     }
  /* Some quote fits, or a key stands in its place. */
  :: atomic {
       select(i : 0 .. SESSIONS - 1); select(j : 0 .. SESSIONS - 1);
       if
       :: s[i].phase == QUOTED && !has_turned(i) && may_be(i, s[i].prole) && agrees(i) &&
          ((vouched(i) && j == i) || (!vouched(i) && s[i].pkey != K_OWNER && fits(i, j, nonce(i)))) ->
          s[i].phase = OPEN;
          check_open(i, j)
       :: else
       fi;
       i = 0; j = 0
     }
#if QUESTIONS > 0
  /* An open session asks for evidence anew, where it has seen any. */
  :: atomic {
       select(i : 0 .. SESSIONS - 1);
       if
       :: s[i].phase == OPEN && !has_turned(i) && !vouched(i) && !s[i].waits && s[i].asked < QUESTIONS ->
          drawn = drawn | (1 << question(i, s[i].asked));
          s[i].asked++;
          s[i].waits = true;
          s[i].late = s[i].end < SESSIONS && has_turned(s[i].end)
       :: else
       fi;
       i = 0
     }
  /* An open session answers its peer's question, or the attacker's, which are over all nonces that there are. */
  :: atomic {
       select(i : 0 .. 4);
       if
       :: s[i].phase == OPEN && !has_turned(i) ->
          if
          :: is_hostile(i) -> s[i].made = s[i].made | drawn
          :: !is_hostile(i) && s[s[i].end].waits ->
             j = s[i].end;
             s[i].made = s[i].made | (1 << answer(j))
          :: else
          fi
       :: else
       fi;
       i = 0; j = 0
     }
  /* The answer is in. */
  :: atomic {
       select(i : 0 .. SESSIONS - 1); select(j : 0 .. SESSIONS - 1);
       if
       :: s[i].phase == OPEN && s[i].waits && !has_turned(i) && fits(i, j, answer(i)) ->
          assert(!s[i].late);
          assert(s[i].end == ATTACKER || j == s[i].end);
          s[i].waits = false
       :: else
       fi;
       i = 0; j = 0
     }
#endif
#ifdef REACH
  /* Two honest sessions are open, and have answered one another. */
  :: leak == 0 && turned == 0 && s[0].asked == QUESTIONS && !s[0].waits && s[3].asked == QUESTIONS ->
     assert(s[3].waits)
#endif
  :: break
  od
}
