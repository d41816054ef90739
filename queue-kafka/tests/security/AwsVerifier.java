import java.net.URI;
import java.net.URLDecoder;
import java.net.URLEncoder;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.time.Instant;
import java.time.ZoneOffset;
import java.time.format.DateTimeFormatter;
import java.util.Base64;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.stream.Collectors;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;
import javax.security.auth.callback.Callback;
import javax.security.auth.callback.UnsupportedCallbackException;
import javax.security.auth.login.AppConfigurationEntry;
import org.apache.kafka.common.security.auth.AuthenticateCallbackHandler;
import org.apache.kafka.common.security.oauthbearer.OAuthBearerToken;
import org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallback;

/**
 * Stands where AWS checks identities: takes tokens that are signed as Signature Version 4 says, and no others.
 *
 * <p>The options of the login module are the region, and the secret key of each identity, as {@code secret_<access
 * key>}. One whose access key starts with {@code ASIA} is temporary: its session token says in milliseconds when it ends.
 */
public final class AwsVerifier implements AuthenticateCallbackHandler {
  private static final DateTimeFormatter DATE =
      DateTimeFormatter.ofPattern("yyyyMMdd'T'HHmmss'Z'").withZone(ZoneOffset.UTC);
  private static final Set<String> NAMES =
      Set.of(
          "Action", "User-Agent", "X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires",
          "X-Amz-Security-Token", "X-Amz-Signature", "X-Amz-SignedHeaders");

  private Map<String, ?> options;

  record Token(String value, Set<String> scope, long lifetimeMs, String principalName, Long startTimeMs)
      implements OAuthBearerToken {}

  @Override
  public void configure(Map<String, ?> configs, String mechanism, List<AppConfigurationEntry> entries) {
    options = entries.get(0).getOptions();
  }

  @Override
  public void close() {}

  @Override
  public void handle(Callback[] callbacks) throws UnsupportedCallbackException {
    for (Callback callback : callbacks) {
      if (!(callback instanceof OAuthBearerValidatorCallback asked)) throw new UnsupportedCallbackException(callback);
      try {
        asked.token(verified(asked.tokenValue()));
      } catch (Exception why) {
        asked.error("access denied: " + why.getMessage(), null, null);
      }
    }
  }

  private Token verified(String token) throws Exception {
    URI url = new URI(text(Base64.getUrlDecoder().decode(token)));
    String region = (String) options.get("region");
    String host = "kafka." + region + ".amazonaws.com";
    expect("the address", "https://" + host + "/", url.getScheme() + "://" + url.getAuthority() + url.getRawPath());
    TreeMap<String, String> params = new TreeMap<>();
    for (String param : url.getRawQuery().split("&")) {
      String[] parts = param.split("=", 2);
      if (!NAMES.contains(decoded(parts[0]))) throw new Exception("an unknown parameter");
      if (params.put(decoded(parts[0]), decoded(parts[1])) != null) throw new Exception("a parameter twice");
    }
    if (params.remove("User-Agent") == null) throw new Exception("no user agent");
    String signature = params.remove("X-Amz-Signature");
    expect("the action", "kafka-cluster:Connect", params.get("Action"));
    expect("the algorithm", "AWS4-HMAC-SHA256", params.get("X-Amz-Algorithm"));
    expect("the headers", "host", params.get("X-Amz-SignedHeaders"));

    String date = params.get("X-Amz-Date");
    String[] credential = params.get("X-Amz-Credential").split("/", 2);
    String scope = String.join("/", date.substring(0, 8), region, "kafka-cluster", "aws4_request");
    expect("the scope", scope, credential[1]);
    String secret = (String) options.get("secret_" + credential[0]);
    if (secret == null) throw new Exception("an unknown identity");

    long start = Instant.from(DATE.parse(date)).toEpochMilli();
    long life = Long.parseLong(params.get("X-Amz-Expires"));
    if (life < 1 || life > 900) throw new Exception("a life that is not allowed");
    long end = start + life * 1000;
    String session = params.get("X-Amz-Security-Token");
    boolean temporary = credential[0].startsWith("ASIA");
    if (temporary != (session != null)) throw new Exception("the session is missing, or too much");
    if (session != null) end = Math.min(end, Long.parseLong(session.replaceAll("\\D", "")));
    long now = System.currentTimeMillis();
    if (now >= end) throw new Exception("it has expired");
    if (start > now + 5_000) throw new Exception("it is not valid yet");

    String query =
        params.entrySet().stream()
            .map(param -> encoded(param.getKey()) + "=" + encoded(param.getValue()))
            .collect(Collectors.joining("&"));
    String request = String.join("\n", "GET", "/", query, "host:" + host, "", "host", hash(""));
    byte[] key = ("AWS4" + secret).getBytes(StandardCharsets.UTF_8);
    for (String part : scope.split("/")) key = mac(key, part);
    String signed = String.join("\n", "AWS4-HMAC-SHA256", date, scope, hash(request));
    expect("the signature", HexFormat.of().formatHex(mac(key, signed)), signature);
    return new Token(token, Set.of(), end, credential[0], start);
  }

  private static void expect(String what, String expected, String found) throws Exception {
    if (!expected.equals(found)) throw new Exception(what + " is not as it should be");
  }

  private static String text(byte[] bytes) {
    return new String(bytes, StandardCharsets.UTF_8);
  }

  private static String decoded(String text) {
    return URLDecoder.decode(text, StandardCharsets.UTF_8);
  }

  private static String encoded(String text) {
    return URLEncoder.encode(text, StandardCharsets.UTF_8).replace("+", "%20").replace("*", "%2A").replace("%7E", "~");
  }

  private static String hash(String text) throws Exception {
    byte[] hash = MessageDigest.getInstance("SHA-256").digest(text.getBytes(StandardCharsets.UTF_8));
    return HexFormat.of().formatHex(hash);
  }

  private static byte[] mac(byte[] key, String text) throws Exception {
    Mac mac = Mac.getInstance("HmacSHA256");
    mac.init(new SecretKeySpec(key, "HmacSHA256"));
    return mac.doFinal(text.getBytes(StandardCharsets.UTF_8));
  }
}
