/* The session's state machine against a symbolic attacker, for the model checker spin.
 *
 * The network is the attacker's: it carries connections between honest parties (TLS keeps their content), drops
 * them, and ends them itself wherever it owns the private key of a certificate that would be accepted. Where it is the
 * end of a connection it reads and says what it likes. Quotes are made by genuine TDs only, over what their own
 * session knows; every quote ever made is the attacker's to show. Nonces and exporters differ for each connection.
 *
 * -DOWNER: with a secret service, instead of a second worker and a second session of ps0.
 *
 *   client sessions   c: worker0, w: worker1, p: ps0 asking a secret service
 *   server sessions   s, t: two of ps0, o: an owner's secret service without a TD
 *
 * -DLEAK=bits: whose keys the attacker owns. -DNO_...: what the report data of a quote leaves out.
 *
 * Properties, as assertions where a session opens (check_open) and where somebody reads the roster (audit):
 *
 *   secrecy    the other end of an open session is an honest party, or the owner of a key that stands for evidence
 *   agreement  both ends have the same view of keys, roles, nonces, policies and job, and each nonce is of one session
 *   roster     an entry whose quote fits says the truth about role, job and policy
 *
 * They hold with every key of one participant lost, and with those of both ends (LEAK=5): then only the exporter
 * tells the connection that a quote was made for from the ones that the attacker ends. Without it secrecy fails.
 * .ci/model.sh searches all of it.
 */
#define WORKER0 0
#define WORKER1 1
#define PS0     2
#define SECRET  3

/* Keys, as bits of LEAK: each party has one for all its sessions. */
#define K_WORKER0 1
#define K_WORKER1 2
#define K_PS0     4
#define K_OWNER   8

#ifndef LEAK
#define LEAK 0
#endif

#define SESSIONS 6
#define NOBODY   255
#define ATTACKER 254
#define NO_NONCE 100

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
  byte job      /* a client's is what its server says */
};
Session s[SESSIONS];
byte policy[SESSIONS];

/* Two casts, each small enough to be searched whole: a job alone, and an owner's service beside it. */
#ifdef OWNER
#define is_off(i) ((i) == 1 || (i) == 4)
#else
#define is_off(i) ((i) == 2 || (i) == 5)
#endif

#define is_client(i) ((i) < 3)
#define role(i) ((i) == 0 -> WORKER0 : ((i) == 1 -> WORKER1 : ((i) == 5 -> SECRET : PS0)))
#define key(i)  ((i) == 0 -> K_WORKER0 : ((i) == 1 -> K_WORKER1 : ((i) == 5 -> K_OWNER : K_PS0)))
#define nonce(i) ((i) + 1)
#define own_job(i) (is_client(i) -> 0 : 1)
/* Whom a session may be connected to in truth, if the attacker lets it. */
#define may_meet(c, v) ((c) == 2 -> (v) == 5 : (v) == 3 || (v) == 4)
/* What it takes for an answer. */
#define may_be(i, r) ((i) == 2 -> (r) == SECRET : ((i) < 2 -> (r) == PS0 : \
                     ((i) == 5 -> (r) == PS0 : (r) == WORKER0 || (r) == WORKER1)))
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
#define same_nonces(i, j) true
#else
#define same_nonces(i, j) (nonce(j) == s[i].pnonce && s[j].pnonce == nonce(i))
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

/* Whether the quote that j made is one that i waits for. An owner without a TD makes none. */
#define fits(i, j) (j != 5 && (s[j].phase == QUOTED || s[j].phase == OPEN) && same_exporter(i, j) && same_keys(i, j) && \
                   same_nonces(i, j) && same_roles(i, j) && same_direction(i, j) && same_job(i, j) && \
                   same_policies(i, j))

/* Participants judge by one policy. */
#define agrees(i) (i == 2 || i == 5 || s[i].ppolicy == policy[i])
/* A key in the place of evidence: the owner's, as its secret service. */
#define vouched(i) (s[i].pkey == K_OWNER && s[i].prole == SECRET)

inline hello(i, r, n, j, p) {
  s[i].prole = r;
  s[i].pnonce = n;
  s[i].ppolicy = p;
  if
  :: is_client(i) -> s[i].job = j
  :: else -> s[i].job = own_job(i)
  fi
}

inline check_open(i) {
  /* Secrecy: what is said from now on is read by the other end, so that is no attacker; but who has an owner's key
     is the owner, in its role. */
  assert(s[i].end != ATTACKER || (s[i].pkey == K_OWNER && s[i].prole == SECRET && (LEAK & K_OWNER)));
  /* Agreement with the one at the other end, injective: each nonce is of one session. */
  if
  :: s[i].end != ATTACKER ->
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
}

/* Who reads the roster afterwards has quotes and what is said about them: an entry that fits says the truth. */
inline audit(i) {
  select(r : 0 .. 2); select(job : 1 .. 2); select(pol : 1 .. 2);
  fit = true;
#ifndef NO_ROLES
  fit = fit && r == role(i);
#endif
#ifndef NO_JOB
  fit = fit && job == s[i].job;
#endif
#ifndef NO_POLICY
  fit = fit && pol == policy[i];
#endif
  if
  :: fit -> assert(r == role(i) && job == s[i].job && pol == policy[i])
  :: else
  fi;
  r = 0; job = 0; pol = 0; fit = false
}

init {
  byte i; byte j; byte n; byte r;
  byte job; byte pol;
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
  fi
  do
  /* A connection between honest parties. */
  :: atomic {
       select(i : 0 .. 2); select(j : 3 .. 5);
       if
       :: s[i].phase == IDLE && s[j].phase == IDLE && may_meet(i, j) ->
          s[i].end = j; s[j].end = i;
          s[i].pkey = key(j); s[j].pkey = key(i);
          s[i].phase = CONNECTED; s[j].phase = CONNECTED
       :: else
       fi;
       i = 0; j = 0
     }
  /* One that the attacker ends with a key that it owns. */
  :: atomic {
       select(i : 0 .. SESSIONS - 1);
       if
       :: s[i].phase == IDLE ->
          if
          :: (LEAK & K_WORKER0) -> r = K_WORKER0
          :: (LEAK & K_WORKER1) -> r = K_WORKER1
          :: (LEAK & K_PS0) -> r = K_PS0
          :: (LEAK & K_OWNER) -> r = K_OWNER
          :: else -> r = 0
          fi;
          if
          /* Our own key shown to us is refused. */
          :: r != 0 && r != key(i) ->
             s[i].end = ATTACKER; s[i].pkey = r; s[i].phase = CONNECTED
          :: else
          fi
       :: else
       fi;
       i = 0; r = 0
     }
  /* The peer's hello: as TLS keeps it, or as the attacker likes it. Our quote answers it. */
  :: atomic {
       select(i : 0 .. SESSIONS - 1);
       if
       :: s[i].phase == CONNECTED && s[i].end == ATTACKER ->
          /* Nonces that it knows: of those who talk to it, and one of its own. What would be refused for a role, a
             policy or our own nonce is not said. */
          select(n : 0 .. SESSIONS);
          if
          :: n > 0 && n != nonce(i) && s[n - 1].end == ATTACKER
          :: else -> n = NO_NONCE
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
          :: may_be(i, r) -> hello(i, r, n, job, pol); s[i].phase = QUOTED
          :: else
          fi
       :: s[i].phase == CONNECTED && s[i].end != ATTACKER ->
          j = s[i].end;
          hello(i, role(j), nonce(j), own_job(j), policy[j]); s[i].phase = QUOTED
       :: else
       fi;
       i = 0; r = 0; n = 0; job = 0; pol = 0; j = 0
     }
  /* Some quote fits, or a key stands in its place. */
  :: atomic {
       select(i : 0 .. SESSIONS - 1); select(j : 0 .. SESSIONS - 1);
       if
       :: s[i].phase == QUOTED && may_be(i, s[i].prole) && agrees(i) &&
          ((vouched(i) && j == i) || (!vouched(i) && s[i].pkey != K_OWNER && fits(i, j))) ->
          s[i].phase = OPEN;
          check_open(i)
       :: else
       fi;
       i = 0; j = 0
     }
  :: atomic {
       select(i : 0 .. 4);
       if
       :: s[i].phase == QUOTED || s[i].phase == OPEN -> audit(i)
       :: else
       fi;
       i = 0
     }
  :: break
  od
}
