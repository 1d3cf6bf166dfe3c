/* libnice, speaking the lines of icecat: controlling|controlled ADDRESS. */
#include <agent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static NiceAgent *agent;
static guint stream;
static gboolean signaled, connected;
static char ufrag[300], pwd[300];
static GSList *remotes;
static GMainLoop *loop;

static void on_data(NiceAgent *a, guint s, guint c, guint length, gchar *data, gpointer user) {
  printf("data %.*s\n", (int)length, data);
}

static void on_state(NiceAgent *a, guint s, guint c, guint state, gpointer user) {
  if ((state == NICE_COMPONENT_STATE_CONNECTED || state == NICE_COMPONENT_STATE_READY) &&
      !connected) {
    connected = TRUE;
    printf("state connected\n");
  }
  if (state == NICE_COMPONENT_STATE_FAILED) printf("state failed\n");
}

static void on_gathered(NiceAgent *a, guint s, gpointer user) {
  gchar *u = NULL, *p = NULL;
  nice_agent_get_local_credentials(agent, stream, &u, &p);
  printf("ufrag %s\npwd %s\n", u, p);
  GSList *candidates = nice_agent_get_local_candidates(agent, stream, 1);
  for (GSList *i = candidates; i; i = i->next) {
    gchar *sdp = nice_agent_generate_local_candidate_sdp(agent, i->data);
    printf("cand %s\n", sdp + strlen("a=candidate:"));
    g_free(sdp);
  }
  printf("end\n");
  g_slist_free_full(candidates, (GDestroyNotify)nice_candidate_free);
  g_free(u);
  g_free(p);
}

static gboolean on_line(GIOChannel *in, GIOCondition condition, gpointer user) {
  gchar *line = NULL;
  if (g_io_channel_read_line(in, &line, NULL, NULL, NULL) != G_IO_STATUS_NORMAL) {
    g_main_loop_quit(loop);
    return FALSE;
  }
  g_strchomp(line);
  if (signaled) {
    nice_agent_send(agent, stream, 1, strlen(line), line);
  } else if (g_str_has_prefix(line, "ufrag ")) {
    g_strlcpy(ufrag, line + 6, sizeof ufrag);
  } else if (g_str_has_prefix(line, "pwd ")) {
    g_strlcpy(pwd, line + 4, sizeof pwd);
    nice_agent_set_remote_credentials(agent, stream, ufrag, pwd);
  } else if (g_str_has_prefix(line, "cand ")) {
    gchar *sdp = g_strconcat("a=candidate:", line + 5, NULL);
    NiceCandidate *candidate = nice_agent_parse_remote_candidate_sdp(agent, stream, sdp);
    if (candidate) remotes = g_slist_append(remotes, candidate);
    g_free(sdp);
  } else if (!strcmp(line, "end")) {
    signaled = TRUE;
    nice_agent_set_remote_candidates(agent, stream, 1, remotes);
    nice_agent_peer_candidate_gathering_done(agent, stream);
  }
  g_free(line);
  return TRUE;
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  setvbuf(stdout, NULL, _IOLBF, 0);
  loop = g_main_loop_new(NULL, FALSE);
  agent = nice_agent_new_full(g_main_loop_get_context(loop), NICE_COMPATIBILITY_RFC5245,
                              NICE_AGENT_OPTION_REGULAR_NOMINATION | NICE_AGENT_OPTION_ICE_TRICKLE |
                                  NICE_AGENT_OPTION_CONSENT_FRESHNESS);
  g_object_set(agent, "controlling-mode", !strcmp(argv[1], "controlling"), "upnp", FALSE, "ice-tcp",
               FALSE, NULL);
  NiceAddress address;
  nice_address_init(&address);
  nice_address_set_from_string(&address, argv[2]);
  nice_agent_add_local_address(agent, &address);
  stream = nice_agent_add_stream(agent, 1);
  const char *server = getenv("INTEROP_TURN");
  if (server) {
    gchar **parts = g_strsplit(server, ":", 2);
    nice_agent_set_relay_info(agent, stream, 1, parts[0], atoi(parts[1]),
                              getenv("INTEROP_TURN_USER"), getenv("INTEROP_TURN_PASSWORD"),
                              NICE_RELAY_TYPE_TURN_UDP);
    g_strfreev(parts);
  }
  g_signal_connect(agent, "candidate-gathering-done", G_CALLBACK(on_gathered), NULL);
  g_signal_connect(agent, "component-state-changed", G_CALLBACK(on_state), NULL);
  nice_agent_attach_recv(agent, stream, 1, g_main_loop_get_context(loop), on_data, NULL);
  nice_agent_gather_candidates(agent, stream);
  GIOChannel *in = g_io_channel_unix_new(0);
  g_io_add_watch(in, G_IO_IN | G_IO_HUP, on_line, NULL);
  g_main_loop_run(loop);
  return 0;
}
